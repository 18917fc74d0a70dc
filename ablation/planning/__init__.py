"""`--plan`: what a study would take."""
