#!/usr/bin/env python3
# Copyright the MaskFormer-on-detectron2 authors. Licensed under Apache-2.0 (see LICENSE).
"""Save the results of a trained model for a folder; see mask_former/cli/predict_folder.py."""

import sys

from mask_former.cli.predict_folder import main

if __name__ == "__main__":
    sys.exit(main())
