// Package tdx reads and writes Intel TDX quotes of version 4, and of version 5 with TD report bodies
// (types 2, 3 and 4).
//
// It is a codec and nothing more: every value it returns is unverified. ParseQuote accepts exactly the bytes that
// Quote.Append writes, so a parsed quote has one encoding; anything shorter, longer or with a length field that
// disagrees with its surroundings is refused. Only attest turns a quote into claims.
//
// Sources: Intel TDX DCAP Quoting Library API, appendix A.3 "Version 4 Quote Format" and A.4 "Version 5 Quote Format";
// sgx_quote_5.h of Intel's DCAP sources for body type 4; Intel TDX Module base architecture specification for the meaning of the body's fields. All integers are little endian.
package tdx
