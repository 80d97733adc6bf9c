// Package config reads the project's YAML files strictly. What a file decides must be visible in the file: unknown and
// duplicate keys, anchors, aliases, merges, tags, directives and second documents are refused, and so is anything over the
// size limit. Host-given configuration sets addresses, paths and log levels; nothing in it can widen what is trusted.
package config
