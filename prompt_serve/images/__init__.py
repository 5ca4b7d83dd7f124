"""Parts of decoding images that need nothing but Pillow and numpy."""
