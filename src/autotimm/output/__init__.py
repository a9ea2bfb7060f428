"""What was predicted as files: tables, COCO results, label images and pictures to look at.

Nothing is imported here: :mod:`autotimm.output.places` answers a mistake in a command without torch.
"""
