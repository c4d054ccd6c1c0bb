"""Random valid cases, drawn by seed, beside diffusers, peft and torch-fidelity; skipped where those are not installed.

`launch/peers.sh` makes an environment that has them and runs this folder. Each case ends in one of two ways: the values
agree, or one line refuses what is not supported, naming it; anything else fails. The summary counts both.
"""
