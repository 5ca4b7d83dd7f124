"""Signatures of prompt files: Ed25519 keys, the signature inside a file, and whom a service trusts.

The format is specified in ``docs/prompt-file.md``. Needs the extra ``signing``.
"""
