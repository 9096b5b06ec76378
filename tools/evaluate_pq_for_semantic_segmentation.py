#!/usr/bin/env python3
"""Evaluate the PQ of semantic predictions; see mask_former/cli/evaluate_pq.py."""

import sys

from mask_former.cli.evaluate_pq import main

if __name__ == "__main__":
    sys.exit(main())
