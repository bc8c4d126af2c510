"""Teacher-student training of semantic segmentation networks on Ray.

Importing the package is cheap: nothing here pulls in torch or Ray.
"""

import os

# Hides OpenCV's own warnings about a damaged file: our error names it. cv2 reads this when imported.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
