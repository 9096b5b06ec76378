#!/usr/bin/env python3
"""Convert a torchvision ResNet's weights; see mask_former/cli/convert_torchvision.py."""

import sys

from mask_former.cli.convert_torchvision import main

if __name__ == "__main__":
    sys.exit(main())
