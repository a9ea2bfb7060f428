"""The command line. Each verb is one file; torch is imported only when a verb starts to work."""
