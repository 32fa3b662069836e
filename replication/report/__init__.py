"""What the user reads: tables, figures and the page that holds them."""
