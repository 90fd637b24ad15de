"""Many executions of one program: proof over states, a second opinion over steps, hunting, and minimal stories."""
