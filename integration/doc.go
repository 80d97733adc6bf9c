// Package integration holds the tests that look at the project as a whole: the import rules of the house, the
// simulated cluster, the faults it must survive, and the reference vectors run through the command line.
//
// It exports nothing. The import rules are a table, one line per package of the module: a package that is not in
// the table fails the test, so that a new package comes with a decision about what it may depend on.
package integration
