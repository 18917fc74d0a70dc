"""What everything stands on: errors, text, files, seeds, the device, the terminal."""
