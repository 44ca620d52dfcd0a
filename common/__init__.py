"""What every part uses and nothing about sentences: errors, files written whole, options, devices."""
