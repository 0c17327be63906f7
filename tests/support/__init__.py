"""What tests share: child processes, threads, stores, rigs, engines, archives. No test lies here."""
