"""The door for browsers and scripts: REST, WebSocket and the page, over one port."""
