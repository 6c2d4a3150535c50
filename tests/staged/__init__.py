"""Series as hospitals have them, staged with known answers, and what readers make of them."""
