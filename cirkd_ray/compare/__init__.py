"""Methods compared over seeds: the plan, the folder, the statistics; needs no Ray."""
