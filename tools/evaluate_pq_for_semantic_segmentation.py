#!/usr/bin/env python3
"""Evaluate PQ of semantic segmentation; see mask_former/cli/evaluate_pq.py."""

import sys

from mask_former.cli.evaluate_pq import main

if __name__ == "__main__":
    sys.exit(main())
