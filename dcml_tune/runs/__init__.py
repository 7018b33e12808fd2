"""Files that searches and runs write below the output directory."""
