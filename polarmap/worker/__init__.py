"""Code that runs on workers. Lithops workers receive it by value, so it imports numpy at most."""
