"""Where images and embeddings are read from: folders, lists, archives, tables, object stores."""
