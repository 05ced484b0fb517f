"""Who decides what runs: routers, decisions, budget and calibration. Needs torch only."""
