"""The papers' protocols: base-to-new, few-shot, cross-dataset transfer, domain generalization."""
