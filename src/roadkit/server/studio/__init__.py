"""The Studio: a page at `/studio` that shows angles, dials adapters and compares answers side by side."""
