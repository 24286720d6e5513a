"""One replica's loop: what the driver's answers make it do, its local steps, its heartbeat, its evaluation."""
