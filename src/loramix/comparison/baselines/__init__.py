"""What a mixture is compared with: merges, searched weights and other routers over the same
experts.

Each module has functions that fit a baseline and leave it in a folder, and functions that load it
as a context manager, so that whatever a baseline changes in its base is undone.
"""
