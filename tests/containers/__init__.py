"""Tests of the homes inside containers, with real rootless podman and toolbox."""
