"""One family of generative models a file: a frozen Config whose build() returns a core.GenerativeModel."""
