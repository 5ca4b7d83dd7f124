"""Pipeline that builds the embedded backbones: a maintainer's tool, not installed with the package.

Icons and photographs become image features, names become sentence embeddings, a small text tower
learns the embeddings, a projection joins the two, and the result is shipped as an open_clip model.
"""
