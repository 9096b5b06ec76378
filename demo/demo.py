#!/usr/bin/env python3
"""Draw or save the results of a trained model; see mask_former/cli/predict.py."""

import sys

from mask_former.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
