const path = require('path');

module.exports = {
  mode: 'production',
  entry: './src/index.js',
  optimization: { minimize: false },
  output: {
    path: path.resolve(__dirname, 'dist'),
    filename: 'bundle.js',
    library: 'cclexports', // Conclave Functions and Claviger look for this global
  },
};
