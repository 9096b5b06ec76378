#!/usr/bin/env python3
"""Export a trained model to ONNX, torch.export or TorchScript; see mask_former/cli/export.py."""

import sys

from mask_former.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
