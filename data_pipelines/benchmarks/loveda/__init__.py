"""LoveDA, rural to urban."""
