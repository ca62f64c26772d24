"""Stages: functions from inputs on disk to outputs on disk, run in order and only where something
changed.
"""
