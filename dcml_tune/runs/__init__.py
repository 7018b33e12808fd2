"""What a search leaves below its output directory."""
