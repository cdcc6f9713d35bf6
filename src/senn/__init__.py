"""senn: networks that find their own size while they train."""
