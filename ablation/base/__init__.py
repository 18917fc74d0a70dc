"""The foundation: errors, text, files, seeds, the device, the machine, the terminal, the command line."""
