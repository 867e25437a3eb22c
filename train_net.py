#!/usr/bin/env python
"""Train a detector, gather its logit statistics, evaluate it with and without calibration."""

from __future__ import annotations

import argparse
import sys

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup

from logn_d2 import add_logn_config
from logn_d2.data import register_from_config, register_glyphs
from logn_d2.engine import Trainer, launch


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of the command line, with data sets registered."""
    cfg = get_cfg()
    add_logn_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    register_glyphs()
    register_from_config(cfg)
    return cfg


def main(args: argparse.Namespace) -> None:
    """What every process does."""
    cfg = setup(args)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--num-processes", type=int, default=1)
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args()
    sys.exit(launch(main, args.num_processes, device="cpu", args=(args,)))
