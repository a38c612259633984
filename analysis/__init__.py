"""What is concluded: tables and statistics made from the results alone, without torch and without bench."""
