"""The mathematics of diffusion: pure functions of arrays and tables, with no network and no device in sight."""
