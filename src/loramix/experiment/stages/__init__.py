"""Stages: functions from inputs on disk to outputs on disk, run only where something changed."""
