// Package cli is what every binary of the project does the same way: run a cobra command tree against given streams,
// print results for people or as JSON, and turn errors into sentences and exit codes.
//
// Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Results go to standard output and nothing else does; errors
// go to standard error, with --json as one object {"error", "exit", "code", "stage", "reason", "failures"}.
package cli
