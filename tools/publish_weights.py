#!/usr/bin/env python3
"""Turn a checkpoint into a file to publish; see mask_former/cli/publish_weights.py."""

import sys

from mask_former.cli.publish_weights import main

if __name__ == "__main__":
    sys.exit(main())
