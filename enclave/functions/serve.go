package functions

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

const (
	readTimeout     = 30 * time.Second
	writeTimeout    = 90 * time.Second
	shutdownTimeout = 15 * time.Second // longer than a function may run
)

// Serve answers on a listener until ctx ends, then lets the calls in flight
// finish, within 15 seconds, and closes the Host and the listener.
func (h *Host) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           h.Handler(),
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return errors.Join(err, h.Close())
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := server.Shutdown(stop)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	<-failed // http.ErrServerClosed
	return errors.Join(err, h.Close())
}
