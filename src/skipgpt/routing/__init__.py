"""What decides which modules run: routers, decisions, budget and calibration. Needs torch only."""
