"""Where rows come from: the hub, folders, CSV and JSON files."""
