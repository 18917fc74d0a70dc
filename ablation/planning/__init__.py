"""`--plan`: the time, memory and disk that a study needs."""
