"""What training costs on this machine, as shares and ratios that are measured in one run."""
