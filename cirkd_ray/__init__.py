"""Teacher-student training of semantic segmentation networks on Ray.

Importing the package is cheap: nothing here pulls in torch or Ray.
"""

__version__ = "0.1.0"
