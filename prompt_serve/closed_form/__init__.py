"""Class vectors: the class features of a task, learned in closed form from image features."""
