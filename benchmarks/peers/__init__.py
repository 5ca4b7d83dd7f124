"""The service and other servers of CLIP, with the same weights and photographs, in turns."""
